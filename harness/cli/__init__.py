"""What a person calls: one module for each command."""
