"""Several models in one file that votes: joining their graphs and fitting the weights of the vote."""
