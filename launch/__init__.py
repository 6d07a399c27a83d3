"""How work gets to where it runs: this machine, Slurm, a Ray cluster, Kubernetes. Knows no torch."""
