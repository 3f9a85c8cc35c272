package main

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	_ "modernc.org/sqlite" // the driver
)

const rowSize = 500 // bytes of what is made durable at a time

// bareCommit is what one durable decision costs at the least: a transaction of one
// insert, write-ahead log, synchronous=FULL.
func bareCommit(ctx context.Context, dir string, n int) (took []time.Duration, err error) {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "bare.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, "CREATE TABLE row (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)"); err != nil {
		return nil, err
	}
	insert, err := db.PrepareContext(ctx, "INSERT INTO row (body) VALUES (?)")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, insert.Close()) }()
	body := make([]byte, rowSize)
	for range n {
		begin := time.Now()
		if _, err := insert.ExecContext(ctx, body); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}

// bareFdatasync is what the disk alone takes for the same bytes.
func bareFdatasync(dir string, n int) (took []time.Duration, err error) {
	f, err := os.OpenFile(filepath.Join(dir, "bare.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	body := make([]byte, rowSize)
	for range n {
		begin := time.Now()
		if _, err := f.Write(body); err != nil {
			return nil, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}
