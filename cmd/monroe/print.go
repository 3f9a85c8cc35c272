package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/getmonroe/monroe/host/api/client"
)

// show prints v as JSON where that is asked for, and otherwise lets text do it.
func (e *env) show(v any, text func()) error {
	if !e.json {
		text()
		return nil
	}
	enc := json.NewEncoder(e.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// busyEvery is how often a long step says that it goes on.
const busyEvery = 5 * time.Second

// busy says now and then on the error channel that a step still goes on. The caller ends
// it with done, after which nothing is said any more.
func (e *env) busy(what string) (done func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(busyEvery)
		defer tick.Stop()
		for passed := busyEvery; ; passed += busyEvery {
			select {
			case <-tick.C:
				fmt.Fprintf(e.err, "%s, %s so far …\n", what, passed)
			case <-stop:
				return
			}
		}
	}()
	return func() { close(stop); <-stopped }
}

// answer asks the daemon and shows what it says.
func answer[T any](e *env, ask func(*client.Client) (T, error), text func(T)) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	v, err := ask(c)
	if err != nil {
		return err
	}
	return e.show(v, func() { text(v) })
}

func (e *env) printf(format string, args ...any) { fmt.Fprintf(e.out, format, args...) }

// table prints rows under a heading.
func (e *env) table(head []string, rows [][]string) {
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, r := range rows {
		for i := range r {
			r[i] = plain(r[i])
		}
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	_ = w.Flush() // standard output is gone, then there is nobody to tell
}

// plain makes text of others safe for a terminal: no control or invisible
// characters, on one line.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
}

// block is plain for text of several lines.
func block(s, indent string) string {
	var b strings.Builder
	for _, line := range strings.Split(strings.ReplaceAll(s, "\r\n", "\n"), "\n") {
		b.WriteString(indent + plain(strings.ReplaceAll(line, "\t", "    ")) + "\n")
	}
	return b.String()
}

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
