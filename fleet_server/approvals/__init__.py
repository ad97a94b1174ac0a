"""Protected commands that wait until enough people have signed them."""
