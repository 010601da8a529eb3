"""Many trials: expanded and checked as a whole before one runs."""
