"""Every private or young API of other libraries that this package leans on, one module a library."""
