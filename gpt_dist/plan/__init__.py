"""Planning: what a run needs in memory and time on machines that are not here."""
