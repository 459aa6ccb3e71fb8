"""Statistics, tables, figures and the page of a comparison; reads result files only."""
