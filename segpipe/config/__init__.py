"""Every knob, declared once, and the way from a command line or a recipe to a Config. What a knob does is elsewhere."""
