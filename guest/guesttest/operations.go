package guesttest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
)

// operation answers one operation after the checks that every host makes: the op
// fits the effect, and the manifest asks for each resource.
func (h *Host) operation(op abi.Op, name string, args json.RawMessage) abi.Reply {
	if len(args) == 0 {
		args = json.RawMessage("{}")
	}
	i := slices.IndexFunc(h.manifest.Operations, func(u abi.OperationUse) bool { return u.Operation == name })
	if i < 0 {
		return abi.Refuse(abi.Deny(abi.Scope, fmt.Sprintf("the manifest does not list the operation %s", name), "add it to operations"))
	}
	if effect := h.manifest.Operations[i].Effect; op == abi.OpToolCall && effect != abi.EffectRead {
		return abi.Refuse(abi.Deny(abi.Invalid, fmt.Sprintf("%s has the effect %s", name, effect), "use send"))
	} else if op == abi.OpSend && effect == abi.EffectRead {
		return abi.Refuse(abi.Deny(abi.Invalid, name+" only reads", "use tool.call"))
	}
	resources, d := resourcesOf(name, args)
	if d != nil {
		return abi.Refuse(d)
	}
	for _, res := range resources {
		if !slices.ContainsFunc(h.manifest.Operations, func(u abi.OperationUse) bool {
			return u.Operation == name && u.Resource.Covers(res)
		}) {
			return abi.Refuse(abi.Deny(abi.Scope, fmt.Sprintf("no grant of %s covers %s", name, res), "ask an admin for a wider grant"))
		}
	}
	if r, ok := h.override(name, args); ok {
		return r
	}
	switch name {
	case guest.FilesList:
		return with(args, h.list)
	case guest.FilesRead:
		return with(args, h.read)
	case guest.MailSend:
		return with(args, h.mail)
	case guest.HTTPFetch:
		return with(args, h.fetch)
	case guest.LLMChat:
		return with(args, h.chat)
	}
	return abi.Refuse(abi.Deny(abi.Unsupported, name+" has no answer in this test", "use Host.Answer"))
}

// resourcesOf names what a call of a built-in operation acts on, as the
// connectors do. Other operations are not narrowed.
func resourcesOf(name string, args json.RawMessage) ([]string, *abi.Denial) {
	switch name {
	case guest.FilesList, guest.FilesRead:
		var a guest.FilesArgs
		if d := abi.DecodeArgs(args, &a); d != nil {
			return nil, d
		}
		if a.Max < 0 || a.Max > guest.MaxEntries || a.Max > 0 && name == guest.FilesRead {
			return nil, abi.Deny(abi.Invalid, fmt.Sprintf("max is 1 to %d, and of files.list", guest.MaxEntries), "")
		}
		if a.Folder == "" || strings.Contains(a.Folder, "/") || !fs.ValidPath(a.Path) {
			return nil, abi.Deny(abi.Invalid, fmt.Sprintf("folder %q, path %q: a folder's name and a clean relative path are needed", a.Folder, a.Path), "")
		}
		return []string{"files:" + path.Join(a.Folder, a.Path)}, nil
	case guest.MailSend:
		var a guest.Mail
		if d := abi.DecodeArgs(args, &a); d != nil {
			return nil, d
		}
		if len(a.To) == 0 || a.Subject == "" || strings.ContainsAny(a.Subject, "\r\n") {
			return nil, abi.Deny(abi.Invalid, "a mail needs a recipient and a subject of one line", "")
		}
		var rs []string
		for _, to := range slices.Concat(a.To, a.CC) {
			if !strings.Contains(to, "@") {
				return nil, abi.Deny(abi.Invalid, fmt.Sprintf("%q is not an address", to), "")
			}
			rs = append(rs, "mail:"+strings.ToLower(to))
		}
		return rs, nil
	case guest.HTTPFetch:
		var a guest.FetchArgs
		if d := abi.DecodeArgs(args, &a); d != nil {
			return nil, d
		}
		url, _, _ := strings.Cut(a.URL, "?")
		return []string{url}, nil
	}
	return nil, nil
}

func absent(path string) abi.Reply {
	return abi.Refuse(abi.Deny(abi.NotFound, fmt.Sprintf("there is no %s, or you may not see it", path), ""))
}

func (h *Host) list(a *guest.FilesArgs) abi.Reply {
	root, ok := h.folders[a.Folder]
	if !ok {
		return absent("folder " + a.Folder)
	}
	out := guest.Listing{Entries: []guest.Entry{}}
	err := fs.WalkDir(root, a.Path, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if a.Max > 0 && len(out.Entries) == a.Max {
			out.Truncated = true
			return fs.SkipAll
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		out.Entries = append(out.Entries, guest.Entry{Path: p, Size: info.Size(), Modified: info.ModTime().UTC().Format("2006-01-02T15:04:05Z")})
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return absent(a.Path)
	}
	if err != nil {
		return abi.Refuse(abi.Deny(abi.Upstream, err.Error(), ""))
	}
	return abi.OK(out)
}

func (h *Host) read(a *guest.FilesArgs) abi.Reply {
	root, ok := h.folders[a.Folder]
	if !ok {
		return absent("folder " + a.Folder)
	}
	b, err := fs.ReadFile(root, a.Path)
	if err != nil {
		return absent(a.Path)
	}
	if len(b) > abi.MaxReply/2 {
		return abi.Refuse(abi.Deny(abi.TooLarge, fmt.Sprintf("%s has %d bytes", a.Path, len(b)), ""))
	}
	out := guest.File{Path: a.Path, Size: int64(len(b)), SHA256: fmt.Sprintf("%x", sha256.Sum256(b))}
	if info, err := fs.Stat(root, a.Path); err == nil {
		out.Modified = info.ModTime().UTC().Format("2006-01-02T15:04:05Z")
	}
	if utf8.Valid(b) {
		out.Text = string(b)
	} else {
		out.Base64 = base64.StdEncoding.EncodeToString(b)
	}
	return abi.OK(out)
}

func (h *Host) mail(a *guest.Mail) abi.Reply {
	h.outbox = append(h.outbox, *a)
	return abi.OK(guest.MailReceipt{MessageID: fmt.Sprintf("<%d@test>", len(h.outbox))})
}

func (h *Host) fetch(a *guest.FetchArgs) abi.Reply {
	if a.Method != "" && a.Method != "GET" && a.Method != "HEAD" {
		return abi.Refuse(abi.Deny(abi.Invalid, "method is GET or HEAD", ""))
	}
	p, ok := h.pages[a.URL]
	if !ok {
		return abi.OK(guest.Page{Status: 404, ContentType: "text/plain", Text: "not found"})
	}
	return abi.OK(p)
}

func (h *Host) chat(a *guest.ChatArgs) abi.Reply {
	if len(h.script) == 0 {
		h.t.Errorf("the guest asked the model more often than the script answers")
		return abi.Refuse(abi.Deny(abi.Upstream, "the script is over", ""))
	}
	if why := checkChat(a); why != "" {
		h.t.Errorf("a host refuses this llm.chat: %s", why)
		return abi.Refuse(abi.Deny(abi.Invalid, why, ""))
	}
	next := h.script[0]
	h.script = h.script[1:]
	return abi.OK(next)
}

var (
	toolName   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,63}$`)
	toolCallID = regexp.MustCompile(`^[A-Za-z0-9_.:|-]{1,128}$`)
)

// checkChat says which rule of llm.chat a conversation breaks.
func checkChat(a *guest.ChatArgs) string {
	open := map[string]bool{} // calls that wait for their answer
	for i, m := range a.Messages {
		if len(open) > 0 && m.Role != "tool" {
			return fmt.Sprintf("messages[%d]: %d tool calls have no answer", i, len(open))
		}
		switch m.Role {
		case "system", "user":
			if m.Content == "" || m.ToolCalls != nil || m.ToolCallID != "" {
				return fmt.Sprintf("messages[%d]: %s has content and nothing else", i, m.Role)
			}
		case "assistant":
			if m.ToolCallID != "" || m.Content == "" && len(m.ToolCalls) == 0 {
				return fmt.Sprintf("messages[%d]: assistant has content, tool_calls or both", i)
			}
			for _, c := range m.ToolCalls {
				if !toolCallID.MatchString(c.ID) || !toolName.MatchString(c.Name) || open[c.ID] {
					return fmt.Sprintf("messages[%d]: a tool call needs an id of its own and the name of a tool", i)
				}
				open[c.ID] = true
			}
		case "tool":
			if !open[m.ToolCallID] {
				return fmt.Sprintf("messages[%d]: answers no call", i)
			}
			delete(open, m.ToolCallID)
		default:
			return fmt.Sprintf("messages[%d]: role %q is not known", i, m.Role)
		}
	}
	for i, t := range a.Tools {
		if !toolName.MatchString(t.Name) || slices.ContainsFunc(a.Tools[:i], func(o guest.ChatTool) bool { return o.Name == t.Name }) {
			return fmt.Sprintf("tools[%d]: %q is no tool's name, or occurs twice", i, t.Name)
		}
	}
	return ""
}

// builtinSchemas are the argument schemas of the operations answered here.
func builtinSchemas() map[string]string {
	const file = `{"type":"object","properties":{"folder":{"type":"string"},"path":{"type":"string"}},"required":["folder","path"],"additionalProperties":false}`
	return map[string]string{
		guest.FilesList: file,
		guest.FilesRead: file,
		guest.MailSend:  `{"type":"object","properties":{"to":{"type":"array","items":{"type":"string"}},"cc":{"type":"array","items":{"type":"string"}},"subject":{"type":"string"},"text":{"type":"string"}},"required":["to","subject","text"],"additionalProperties":false}`,
		guest.HTTPFetch: `{"type":"object","properties":{"url":{"type":"string"},"method":{"enum":["GET","HEAD"]}},"required":["url"],"additionalProperties":false}`,
	}
}
