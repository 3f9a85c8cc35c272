// Command digest is a skill that reads a folder of documents and mails its owner
// what changed since the last time, the outline of it, open questions and links.
//
// It remembers what it has reported only after the mail was sent, so that a
// digest that somebody rejects is not lost: the next one tells the same news.
//
// It knows documents and how to tell a person about them. It must not know who
// approves the mail, nor anything outside the folder it was named.
package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
)

var _ = guest.Main(run)

func main() {}

const (
	defaultFiles = 200
	mostFiles    = 1000
)

// input is what a run is started with.
type input struct {
	Folder   string `json:"folder"`
	Title    string `json:"title"`
	To       string `json:"to"`
	Since    string `json:"since"`
	MaxFiles int    `json:"max_files"`
}

// result is what a run returns.
type result struct {
	Folder        string     `json:"folder"`
	First         bool       `json:"first"` // there was no digest before
	Files         int        `json:"files"` // that were read
	Changed       changes    `json:"changed"`
	OpenQuestions []finding  `json:"open_questions"`
	Links         linkCounts `json:"links"`
	Notes         []string   `json:"notes,omitempty"`
	Mail          mailResult `json:"mail"`
	Text          string     `json:"text"` // the digest as it was mailed, or would have been
}

// finding is a line worth a person's time, with its source.
type finding struct {
	Path string `json:"path"`
	Line int    `json:"line"`
	Text string `json:"text"`
}

type linkCounts struct {
	Total  int       `json:"total"`
	Hosts  []string  `json:"hosts"`
	Broken []finding `json:"broken"`
}

type mailResult struct {
	Sent      bool     `json:"sent"`
	To        string   `json:"to"`
	MessageID string   `json:"message_id,omitempty"`
	Code      abi.Code `json:"code,omitempty"`
	Reason    string   `json:"reason,omitempty"`
	Remedy    string   `json:"remedy,omitempty"`
	// Remembered says whether the next digest will compare with this one.
	Remembered bool `json:"remembered"`
}

func run(r *guest.Run) error {
	in, since, err := readInput(r)
	if err != nil {
		return err
	}
	to := in.To
	if to == "" {
		host, err := r.Describe()
		if err != nil {
			return err
		}
		if to = host.Owner; to == "" {
			return fmt.Errorf("nobody to mail the digest to: the workspace has no owner's address, so give %q in the input", "to")
		}
	}
	now, err := r.Now()
	if err != nil {
		return err
	}
	past, first, err := recall(r, in.Folder)
	if err != nil {
		return err
	}
	lib, err := readFolder(r, in)
	if err != nil {
		return err
	}
	d := compose(in, lib, past, first, since, now)
	text := d.render()

	res := result{
		Folder: in.Folder, First: first, Files: len(lib.docs), Changed: d.changes,
		OpenQuestions: bounded(d.questions, 100), Links: d.links.counts(), Notes: d.notes,
		Mail: mailResult{To: to}, Text: text,
	}
	r.Progress("Asking to mail the digest to %s", to)
	receipt, err := r.Mail(guest.Mail{To: []string{to}, Subject: d.subject(), Text: text})
	if denial, ok := guest.Denied(err); ok {
		// Not a failure of this skill: somebody or some rule said no. Nothing is
		// remembered, so the news is not lost.
		res.Mail.Code, res.Mail.Reason, res.Mail.Remedy = denial.Code, denial.Reason, denial.Remedy
		r.Progress("The digest was not mailed: %s", denial.Reason)
		return r.Result(res)
	}
	if err != nil {
		return err
	}
	res.Mail.Sent, res.Mail.MessageID = true, receipt.MessageID
	if err := r.KV().Put(stateKey(in.Folder), lib.state(past, now)); err != nil {
		r.Log(guest.LevelWarn, "the digest was mailed, but not remembered: %v", err)
		res.Mail.Reason = "the next digest will repeat this one, since it could not be remembered: " + err.Error()
	} else {
		res.Mail.Remembered = true
	}
	r.Progress("The digest was mailed to %s", to)
	return r.Result(res)
}

func readInput(r *guest.Run) (in input, since time.Time, err error) {
	if err = r.Input(&in); err != nil {
		return in, since, err
	}
	if in.Folder == "" {
		return in, since, fmt.Errorf("the input needs %q, the name of a shared folder", "folder")
	}
	if in.Since != "" {
		if since, err = parseDate(in.Since); err != nil {
			return in, since, err
		}
	}
	switch {
	case in.MaxFiles == 0:
		in.MaxFiles = defaultFiles
	case in.MaxFiles < 0 || in.MaxFiles > mostFiles:
		return in, since, fmt.Errorf("max_files is %d, 1 to %d are allowed", in.MaxFiles, mostFiles)
	}
	in.Title = clean(in.Title)
	if in.Title == "" {
		in.Title = "Digest of " + clean(in.Folder)
	}
	return in, since, nil
}

func parseDate(s string) (time.Time, error) {
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(form, strings.TrimSpace(s)); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("since %q is not a date such as 2026-11-01 or 2026-11-01T08:00:00Z", s)
}

func bounded[T any](s []T, most int) []T {
	if s == nil {
		return []T{} // a list in JSON, not null
	}
	return s[:min(len(s), most)]
}
