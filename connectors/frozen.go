package connectors

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/getmonroe/monroe/abi"
)

// FrozenVersion is the version of the sum below. It is part of every digest.
const FrozenVersion = 1

// Frozen is what leaves the host, exactly: one field is set. The sum is closed; a
// new kind is a new version of it. Bytes are stored as they are here and never
// rebuilt from the arguments.
type Frozen struct {
	HTTP     *HTTPRequest `json:"http,omitempty"`
	SMTP     *SMTPMessage `json:"smtp,omitempty"`
	Maildir  *Maildir     `json:"maildir,omitempty"`
	FileRead *FileRead    `json:"file_read,omitempty"`
	FileList *FileList    `json:"file_list,omitempty"`
	Find     *MaildirFind `json:"maildir_find,omitempty"`
}

// HTTPRequest is one request. A redirect is an answer, never followed.
type HTTPRequest struct {
	Method string   `json:"method"`
	URL    string   `json:"url"` // absolute, normalised
	Header []Header `json:"header,omitempty"`
	Body   []byte   `json:"body,omitempty"`
	// Credential is the slot that the host fills at the moment of sending.
	Credential *Slot `json:"credential,omitempty"`
}

// Header is one header line; order and repeats are kept.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Slot says where a credential goes. Its value is never in frozen bytes.
type Slot struct {
	Connection string `json:"connection"` // whose credential
	Header     string `json:"header"`     // in which header
	Prefix     string `json:"prefix"`     // what stands before it, such as "Bearer "
}

// SMTPMessage is an envelope and a message. Data has CRLF line ends only and no
// dot stuffing; an address is what stands between < and >.
type SMTPMessage struct {
	Server string   `json:"server"` // the name of the operator's server, not an address
	From   string   `json:"from"`
	To     []string `json:"to"`
	Data   []byte   `json:"data"`
}

// Maildir is a message delivered into a folder of the operator's.
type Maildir struct {
	Folder string   `json:"folder"` // the name of the folder, not a path
	Unique string   `json:"unique"` // the delivered file's name; a second delivery is a no-op
	From   string   `json:"from"`
	To     []string `json:"to"`
	Data   []byte   `json:"data"`
}

// MaildirFind looks whether a message was delivered, and whether it is this one.
type MaildirFind struct {
	Folder string `json:"folder"`
	Unique string `json:"unique"`
	SHA256 string `json:"sha256"` // of the message, hexadecimal
}

// FileRead reads one file below a folder of the operator's.
type FileRead struct {
	Folder string `json:"folder"` // the name of the folder, not a path
	Path   string `json:"path"`   // relative, clean, with slashes
	Max    int64  `json:"max"`    // bytes
}

// FileList lists the files below a folder.
type FileList struct {
	Folder string `json:"folder"`
	Path   string `json:"path"` // relative, clean; "." is the folder itself
	Max    int    `json:"max"`  // entries
}

// ErrAnswerTooLarge ends an answer's body that exceeds the plan's MaxAnswer.
var ErrAnswerTooLarge = errors.New("the answer is larger than the plan allows")

// ErrFrozen is wrapped when a Frozen is not exactly one well-formed thing.
var ErrFrozen = errors.New("frozen bytes")

// Digest is the action digest (law 3): the frozen bytes, the account and the
// destination, every field with its length before it. A person's approval covers
// this digest and nothing else.
func (p Plan) Digest() (abi.Digest, error) {
	h := digester{}
	h.text("monroe/action", fmt.Sprint(FrozenVersion), p.Account, p.Destination)
	if err := p.Frozen.digest(&h); err != nil {
		return abi.Digest{}, err
	}
	return sha256.Sum256(h.b.Bytes()), nil
}

func (f Frozen) digest(h *digester) error {
	set := 0
	if r := f.HTTP; r != nil {
		set++
		h.text("http", r.Method, r.URL)
		h.count(len(r.Header))
		for _, x := range r.Header {
			h.text(x.Name, x.Value)
		}
		h.bytes(r.Body)
		if c := r.Credential; c != nil {
			h.text("credential", c.Connection, c.Header, c.Prefix)
		}
	}
	if m := f.SMTP; m != nil {
		set++
		h.text("smtp", m.Server, m.From)
		h.list(m.To)
		if err := checkMessage(m.From, m.To, m.Data); err != nil {
			return err
		}
		h.bytes(m.Data)
	}
	if m := f.Maildir; m != nil {
		set++
		h.text("maildir", m.Folder, m.Unique, m.From)
		h.list(m.To)
		if err := checkMessage(m.From, m.To, m.Data); err != nil {
			return err
		}
		h.bytes(m.Data)
	}
	if r := f.FileRead; r != nil {
		set++
		h.text("file_read", r.Folder, r.Path, fmt.Sprint(r.Max))
	}
	if l := f.FileList; l != nil {
		set++
		h.text("file_list", l.Folder, l.Path, fmt.Sprint(l.Max))
	}
	if m := f.Find; m != nil {
		set++
		h.text("maildir_find", m.Folder, m.Unique, m.SHA256)
	}
	if set != 1 {
		return fmt.Errorf("%w: %d kinds are set, exactly one is needed", ErrFrozen, set)
	}
	return nil
}

// checkMessage refuses what two mail programs could read differently.
func checkMessage(from string, to []string, data []byte) error {
	if len(to) == 0 {
		return fmt.Errorf("%w: a message without a recipient", ErrFrozen)
	}
	for _, a := range append([]string{from}, to...) {
		for i := range len(a) {
			if a[i] <= ' ' || a[i] == '<' || a[i] == '>' || a[i] == 0x7f {
				return fmt.Errorf("%w: the address %q", ErrFrozen, a)
			}
		}
	}
	rest := bytes.ReplaceAll(data, []byte("\r\n"), nil)
	if bytes.ContainsAny(rest, "\r\n") {
		return fmt.Errorf("%w: a bare CR or LF in a message", ErrFrozen)
	}
	return nil
}

// Kind names the kind that is set, for logs and people.
func (f Frozen) Kind() string {
	switch {
	case f.HTTP != nil:
		return "http"
	case f.SMTP != nil:
		return "smtp"
	case f.Maildir != nil:
		return "maildir"
	case f.FileRead != nil:
		return "file_read"
	case f.FileList != nil:
		return "file_list"
	case f.Find != nil:
		return "maildir_find"
	}
	return "none"
}

// Endpoint is where the bytes go, without paths or people: an origin, or the name of
// a server or folder of the operator's.
func (f Frozen) Endpoint() string {
	switch {
	case f.HTTP != nil:
		scheme, rest, _ := strings.Cut(f.HTTP.URL, "://")
		host, _, _ := strings.Cut(rest, "/")
		host, _, _ = strings.Cut(host, "?")
		return scheme + "://" + host
	case f.SMTP != nil:
		return "smtp:" + f.SMTP.Server
	case f.Maildir != nil:
		return "maildir:" + f.Maildir.Folder
	}
	return f.Kind()
}

type digester struct{ b bytes.Buffer }

func (h *digester) bytes(p []byte) {
	h.count(len(p))
	h.b.Write(p)
}

func (h *digester) count(n int) {
	var l [8]byte
	binary.BigEndian.PutUint64(l[:], uint64(n))
	h.b.Write(l[:])
}

func (h *digester) text(ss ...string) {
	for _, s := range ss {
		h.count(len(s))
		_, _ = io.WriteString(&h.b, s)
	}
}

func (h *digester) list(ss []string) {
	h.count(len(ss))
	h.text(ss...)
}

// Content measures what will be sent as one piece: the message, or the body. The
// digest lets a person compare it with what arrived.
func (f Frozen) Content() (size int, sha256Hex string) {
	var b []byte
	switch {
	case f.HTTP != nil:
		b = f.HTTP.Body
	case f.SMTP != nil:
		b = f.SMTP.Data
	case f.Maildir != nil:
		b = f.Maildir.Data
	default:
		return 0, ""
	}
	return len(b), fmt.Sprintf("%x", sha256.Sum256(b))
}
