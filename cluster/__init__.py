"""Templates of what is sent to clusters, and the pages about each place where jobs run. Holds no code."""
