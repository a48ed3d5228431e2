package check

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
)

// dislikes is a server that answers commands that begin with a key by its value, and takes all others.
func dislikes(answers map[string]string) func(net.Conn) {
	return func(c net.Conn) {
		in := bufio.NewReader(c)
		if text, is := answers["greeting"]; is {
			_, _ = io.WriteString(c, text+"\r\n")
			return
		}
		_, _ = io.WriteString(c, greeting)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			said := "250 2.0.0 fine"
			for begin, text := range answers {
				if strings.HasPrefix(line, begin) {
					said = text
				}
			}
			_, _ = io.WriteString(c, said+"\r\n")
		}
	}
}

// TestRelayIsTested: only an answer about relaying is one, and every recipient is asked for.
func TestRelayIsTested(t *testing.T) {
	const denied = "550 5.7.1 relaying denied"
	for name, tt := range map[string]struct {
		answers map[string]string
		expect  Codes
		good    bool
		step    string
		text    string
	}{
		"refused":                {map[string]string{"RCPT": denied}, nil, true, "rcpt", "as expected"},
		"refused without a text": {map[string]string{"RCPT": "554"}, nil, true, "rcpt", "as expected"},
		"login wanted":           {map[string]string{"MAIL": "530 5.7.0 Authentication required"}, nil, true, "mail", "as expected"},
		"other code":             {map[string]string{"RCPT": denied}, Codes{"554"}, false, "rcpt", "expected was 554"},
		"login, other code":      {map[string]string{"MAIL": "530 5.7.0 log in first"}, Codes{"550"}, false, "mail", "expected was 550"},
		"greeting":               {map[string]string{"greeting": "554 5.7.1 go away"}, nil, false, "greeting", "not tested: 554"},
		"hello":                  {map[string]string{"EHLO": "550 no", "HELO": "550 no"}, nil, false, "ehlo", "not tested: 550"},
		"sender":                 {map[string]string{"MAIL": "550 5.1.8 no such domain", "RCPT": denied}, nil, false, "mail", "not tested: 550"},
		"sender, by its code":    {map[string]string{"MAIL": "550 5.7.1 no", "RCPT": denied}, Codes{"550"}, false, "mail", "not tested: 550"},
		"TLS wanted":             {map[string]string{"MAIL": "530 5.7.0 Must issue a STARTTLS command first"}, Codes{"530"}, false, "mail", "not tested: 530"},
		"null MX":                {map[string]string{"RCPT": "556 5.1.10 the domain takes no mail"}, nil, false, "rcpt", "not tested: <b"},
		"unknown domain":         {map[string]string{"RCPT": "550 5.1.2 no such domain"}, nil, false, "rcpt", "not tested"},
		"unknown, by its code":   {map[string]string{"RCPT": "550 5.1.2 no such domain"}, Codes{"550"}, true, "rcpt", "as expected"},
		"syntax":                 {map[string]string{"RCPT": "501 no literals"}, nil, false, "rcpt", "not tested"},
		"for now":                {map[string]string{"RCPT": "450 4.7.1 later"}, nil, false, "rcpt", "not tested"},
		"the second is taken":    {map[string]string{"RCPT TO:<b": denied}, nil, false, "rcpt", "got <c@to.test>: 250"},
		"the first is taken":     {map[string]string{"RCPT TO:<c": denied}, nil, false, "rcpt", "got <b@to.test>: 250"},
		"the second is disliked": {map[string]string{"RCPT TO:<b": denied, "RCPT TO:<c": "550 5.1.1 nobody"}, nil, false, "rcpt", "not tested: <c@to.test>: 550"},
	} {
		t.Run(name, func(t *testing.T) {
			r := Relay(t.Context(), Options{Server: scripted(t, dislikes(tt.answers)), Sender: "<>", Recipients: []string{"b@to.test", "c@to.test"}, Expect: tt.expect})
			is(t, r, tt.good)
			state := Bad
			if tt.good {
				state = Good
			}
			has(t, r, state, tt.step, tt.text)
		})
	}
}
