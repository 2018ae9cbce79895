-- An operator's word that one of the hosts is fenced, a drover.v1.Resolution.
ALTER TABLE migration ADD COLUMN resolution BLOB;
