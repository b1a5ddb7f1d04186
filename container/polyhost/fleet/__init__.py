"""Many servers behind one address: configurations for the engines that route, and what is done to a whole fleet."""
