"""Other tools' file layouts over a bundle's one weights file, beside our own graphs: what ``--layout`` adds."""
