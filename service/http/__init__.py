"""How we are spoken to; with app.py, the only place that knows FastAPI."""
