"""How fast, and in how much memory: this project beside its peers, on the same rows, model file and Postgres."""
