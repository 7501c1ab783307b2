"""The inverse of a plan: the largest job for given hardware, the least hardware for a given job, and sweeps."""
