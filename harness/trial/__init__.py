"""Inside the process of a trial: from a configuration to its story."""
