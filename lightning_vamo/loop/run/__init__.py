"""What one fit owns on one rank."""
