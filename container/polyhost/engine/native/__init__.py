"""The native engine: many models per process, MMS's contract, no Java."""
