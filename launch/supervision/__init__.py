"""Parts of the supervisor: commands and their size, hosts, processes, the decision."""
