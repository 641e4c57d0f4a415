"""What the API has done in processes of their own: large JSON, and the user's code before and after a model."""
