"""What the stages leave for each other and for the report: one typed, torch-free module for each stage."""
