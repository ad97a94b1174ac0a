"""Who may begin here: the signed activation manifest, the first owner's claim, and platform role grants."""
