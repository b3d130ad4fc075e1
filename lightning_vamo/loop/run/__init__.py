"""Everything that one fit owns on one rank."""
