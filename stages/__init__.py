"""The pipeline's stages: read inputs, call the library, write outputs. One file is one stage and one subcommand."""
