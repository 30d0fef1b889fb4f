"""Who scores: rules, secrets, verifiers, gold, critics and ensembles, and the ledger of who may testify."""
