"""The formats that the guard speaks: requests and replies of OpenAI's and Anthropic's routes, as values and back."""
