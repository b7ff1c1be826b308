"""From a search space to trained networks, by random search or guided, on one machine or a cluster."""
