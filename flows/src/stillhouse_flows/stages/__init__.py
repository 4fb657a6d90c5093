"""DVC stages: written from recipes, planned, and run in processes of their own."""
