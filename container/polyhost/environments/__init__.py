"""The command `polyhost env`: named Python environments are built, listed, checked and removed."""
