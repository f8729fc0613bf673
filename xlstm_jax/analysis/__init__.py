"""Numbers about models: parameters and FLOPs."""
