"""How the tiny models and the attackers' pictures were made; run by hand, imported by nobody."""
