"""Tools of the command line beside the stages."""
