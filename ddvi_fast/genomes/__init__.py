"""Genotypes: readers of PLINK, VCF and EIGENSTRAT files into one packed store, filters, principal components, simulated genomes."""
