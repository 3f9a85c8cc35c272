package guest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/getmonroe/monroe/abi"
)

// Names of the operations that this SDK has typed calls for.
const (
	FilesList = "files.list"
	FilesRead = "files.read"
	MailSend  = "mail.send"
	HTTPFetch = "http.fetch"
	LLMChat   = "llm.chat"
)

// Folder is one folder that an operator shares with the workspace.
type Folder struct {
	r    *Run
	name string
}

// Files returns a shared folder by the name that the workspace gave it.
func (r *Run) Files(folder string) Folder { return Folder{r, folder} }

// FilesArgs are those of files.list and files.read. Path is relative to the
// folder, with slashes.
type FilesArgs struct {
	Folder string `json:"folder"`
	Path   string `json:"path"`
	Max    int    `json:"max,omitempty"` // files.list: entries at most, up to MaxEntries
}

// MaxEntries is the longest listing.
const MaxEntries = 2000

// Entry is one file of a listing.
type Entry struct {
	Path     string `json:"path"`
	Size     int64  `json:"size"`
	Modified string `json:"modified"` // RFC 3339
}

// Listing holds the files below a path. Truncated says that there are more.
type Listing struct {
	Entries   []Entry `json:"entries"`
	Truncated bool    `json:"truncated"`
}

// File is a file's content: Text, or Base64 where it is not UTF-8.
type File struct {
	Path     string `json:"path"`
	Size     int64  `json:"size"`
	Modified string `json:"modified"`
	SHA256   string `json:"sha256"`
	Text     string `json:"text,omitempty"`
	Base64   string `json:"base64,omitempty"`
}

// IsText reports whether the file is UTF-8.
func (f *File) IsText() bool { return f.Base64 == "" }

// Bytes returns the content, whichever form it came in.
func (f *File) Bytes() ([]byte, error) {
	if f.IsText() {
		return []byte(f.Text), nil
	}
	return base64.StdEncoding.DecodeString(f.Base64)
}

// List returns every file below path; "." is the whole folder.
func (f Folder) List(path string) (Listing, error) {
	var out Listing
	err := f.r.Tool(FilesList, FilesArgs{f.name, path, MaxEntries}, &out)
	return out, err
}

// Read returns one file.
func (f Folder) Read(path string) (File, error) {
	var out File
	err := f.r.Tool(FilesRead, FilesArgs{Folder: f.name, Path: path}, &out)
	return out, err
}

// FetchArgs are those of http.fetch. An empty Method is GET; HEAD is the other.
type FetchArgs struct {
	URL    string `json:"url"`
	Method string `json:"method,omitempty"`
}

// Page is what http.fetch got. A redirect is not followed: Location says where
// it leads, and asking for that is a decision of its own.
type Page struct {
	Status      int    `json:"status"`
	ContentType string `json:"content_type"`
	Location    string `json:"location,omitempty"`
	Text        string `json:"text,omitempty"`
	Base64      string `json:"base64,omitempty"`
	Truncated   bool   `json:"truncated,omitempty"`
}

// Fetch gets a URL within a granted prefix.
func (r *Run) Fetch(url string) (Page, error) {
	var out Page
	err := r.Call(abi.OpHTTPFetch, FetchArgs{URL: url}, &out)
	return out, err
}

// Mail is a plain-text message.
type Mail struct {
	To      []string `json:"to"`
	CC      []string `json:"cc,omitempty"`
	Subject string   `json:"subject"`
	Text    string   `json:"text"`
}

// MailReceipt is the id of a message that was sent.
type MailReceipt struct {
	MessageID string `json:"message_id"`
}

// Mail sends a message. A person is asked first unless a grant says otherwise.
func (r *Run) Mail(m Mail) (MailReceipt, error) {
	var out MailReceipt
	err := r.Send(MailSend, m, &out)
	return out, err
}

// Message is one message of a conversation with a model.
type Message struct {
	Role       string     `json:"role"` // system, user, assistant or tool
	Content    string     `json:"content"`
	ToolCalls  []ToolCall `json:"tool_calls,omitempty"`
	ToolCallID string     `json:"tool_call_id,omitempty"`
}

// ToolCall is a call that the model wants. Arguments is JSON as the model wrote
// it, so possibly malformed.
type ToolCall struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

// ChatTool is a tool that the model is offered.
type ChatTool struct {
	Name        string          `json:"name"` // [a-zA-Z0-9_-]{1,64}
	Description string          `json:"description"`
	Parameters  json.RawMessage `json:"parameters"` // JSON Schema
}

// ChatArgs are those of llm.chat. An empty Model is the operator's choice.
type ChatArgs struct {
	Model           string     `json:"model,omitempty"`
	Messages        []Message  `json:"messages"`
	Tools           []ChatTool `json:"tools,omitempty"`
	MaxOutputTokens int        `json:"max_output_tokens,omitempty"`
}

// ChatReply is the model's answer and what it cost.
type ChatReply struct {
	Message      Message `json:"message"`
	FinishReason string  `json:"finish_reason"`
	Usage        struct {
		InputTokens  int64 `json:"input_tokens"`
		OutputTokens int64 `json:"output_tokens"`
	} `json:"usage"`
	CostMicroUSD abi.MicroUSD `json:"cost_micro_usd"`
}

// Chat asks a model for the next message.
func (r *Run) Chat(args ChatArgs) (ChatReply, error) {
	var out ChatReply
	if len(args.Messages) == 0 {
		return out, fmt.Errorf("%s: no messages", LLMChat)
	}
	err := r.Call(abi.OpLLMChat, args, &out)
	return out, err
}
