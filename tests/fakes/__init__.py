"""Stand-ins and instruments that tests of both sides share: a clock, a faulty network, processes,
certificates."""
