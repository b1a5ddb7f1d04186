"""Named Python environments: what each is made of (NAME.toml), and which of them a model needs."""
