"""The comparison table, the report page, pictures, crates and the reproduction report."""
