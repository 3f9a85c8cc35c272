package store

// OpenOnNetwork is Open on a file system that OnNetwork names.
var OpenOnNetwork = openSQLite

// Numbered is how PostgreSQL reads a statement.
var Numbered = numbered
