"""How long engines take: models of step times, for placement, planning and simulation."""
