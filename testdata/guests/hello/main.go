// Command hello is the skill of docs/guest-authors.md: it finds the documents of a
// folder that mention a word.
package main

import (
	"strings"

	"github.com/getmonroe/monroe/guest"
)

var _ = guest.Main(run)

func main() {} // Go wants one; the host calls run instead

func run(r *guest.Run) error {
	var in struct {
		Folder string `json:"folder"`
		Word   string `json:"word"`
	}
	if err := r.Input(&in); err != nil {
		return err
	}
	list, err := r.Files(in.Folder).List(".")
	if err != nil {
		return err
	}
	found := []string{}
	for _, e := range list.Entries {
		r.Progress("Reading %s", e.Path)
		f, err := r.Files(in.Folder).Read(e.Path)
		if d, ok := guest.Denied(err); ok {
			r.Log(guest.LevelWarn, "%s: %s", e.Path, d.Reason)
			continue
		} else if err != nil {
			return err
		}
		if strings.Contains(strings.ToLower(f.Text), strings.ToLower(in.Word)) {
			found = append(found, e.Path)
		}
	}
	return r.Result(map[string]any{"found": found})
}
