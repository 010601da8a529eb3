"""What is written down: journals, results, the cache, MLflow, and what is made from it."""
