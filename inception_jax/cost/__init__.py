"""What a network costs: parameters and multiply-adds, counted in its trace."""
