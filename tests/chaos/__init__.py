"""The chaos suite: an installation of real processes, broken at random all the while (docs/faults.md, "Chaos")."""
