"""The cheap checks: code alone, each over whole replies (`decide`) and over replies that still come (`watch`)."""
