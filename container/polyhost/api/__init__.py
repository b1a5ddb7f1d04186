"""The only files that know HTTP."""
