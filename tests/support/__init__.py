"""What several test files use: seeds, covering sets of cases, tiny models, stand-ins for what is not here."""
