"""A mesh of simulated nodes, links and time that drives the pure rules of routes, node side and server side, as the
product drives them. `python -m tests.simulation` compares policies on the same weather (`make routes-sim`)."""
