// Package rewrite changes addresses on their way in: by canonical rules on
// envelope and header, by aliases, and by completing addresses that came without
// a domain.
//
// Rules are what two files say, checked and compiled; they never change and are
// safe for concurrent use. The nil *Rules changes nothing.
//
//	rules, err := rewrite.Load(rewrite.Files{Rules: "rules.yaml", Aliases: "aliases", OwnDomain: "example.org"})
//	sender := rules.Sender(path, nil)              // MAIL
//	recipients, err := rules.Expand(recipient, nil) // RCPT; an *Error says how to refuse
//	fields := rules.Header(fields, true, nil)      // of mail without a signature
//
// Live holds the Rules of files that may change while mail flows. Whoever wants
// to know why an address became another one hands in a Trace.
package rewrite
